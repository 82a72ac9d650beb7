"""Training: what decides it, what starts it, what one rank runs, and what systems are given."""
