"""Behaviours that come along, one TOML file each: prompts that show one, and prompts that must not change.

All of them are harmless. `prompts.load_prompts` reads them as builtin:NAME/target and builtin:NAME/benign.
"""
