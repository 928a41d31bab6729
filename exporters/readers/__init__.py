"""Other programs that run our graphs: the names each looks for, over the same weights.

reader.py   what a reader is, those there are, which a target can serve
rename.py   the canonical graph -> the same under a reader's names
older_operators.py, browser_operators.py   what a reader's graph does without, or has otherwise
"""
