"""Agents: scripted players, an adapter for Stable-Baselines3, PPO in the dream, evaluation in the true world."""
