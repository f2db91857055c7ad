"""`python -m rlhf_gym.cli`."""

import sys

from rlhf_gym.cli.app import main

sys.exit(main())
