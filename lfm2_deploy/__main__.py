"""`python -m lfm2_deploy`, where the console script is not on the path."""

import sys

from lfm2_deploy.cli import main

sys.exit(main())
