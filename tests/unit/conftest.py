from __future__ import annotations

import sys
from pathlib import Path

# The tests' own modules, such as `serving`, are beside them.
sys.path.insert(0, str(Path(__file__).parent))
