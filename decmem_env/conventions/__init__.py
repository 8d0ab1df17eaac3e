"""Shared conventions: actions, poses and cameras, clips (numpy only)."""
