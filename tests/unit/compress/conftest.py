import os
import sys
from pathlib import Path

# The models of architectures.py are also built in fresh processes, which import it by name.
sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
