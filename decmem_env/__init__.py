"""A neural world model with memory as a gymnasium environment."""
