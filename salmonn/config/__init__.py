"""What a run is told: the keys with their defaults, files and overrides read, impossible values, missing files.

May import common. Tests: tests/config/.
"""

from salmonn.config.loading import generate_config, load_config, load_stages, model_config

__all__ = ["generate_config", "load_config", "load_stages", "model_config"]
