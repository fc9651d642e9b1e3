"""Applications: each a small problem, solved from imitation to reinforcement."""
