"""Settings: their schema, where their values come from, and how others see them."""

from iconoclast.config.layers import LoadedSettings, load_settings
from iconoclast.config.schema import PromptSource, Settings

__all__ = ["LoadedSettings", "PromptSource", "Settings", "load_settings"]
