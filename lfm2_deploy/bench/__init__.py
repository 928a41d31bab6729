"""How fast a bundle is on this machine, and how near to what its memory allows."""
