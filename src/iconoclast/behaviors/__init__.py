"""Behaviours that come along, one pack each: prompts that show one, prompts that must not change, and what marks it.

All of them are harmless. `config.packs` reads them; `prompts.load_prompts` knows their sides as builtin:NAME/target and
builtin:NAME/benign.
"""
