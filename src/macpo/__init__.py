"""MACPO: multi-agent contrastive preference optimization (arXiv 2410.07672).

The command line is a thin shell over the functions re-exported here; importing this package is
cheap, torch and transformers load when a function that needs them is called.
"""

from __future__ import annotations

__version__ = "0.1.0"
