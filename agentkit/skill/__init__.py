"""Skill folders: manifest, checked folder, registry."""
