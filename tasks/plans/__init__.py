"""What a flow would do, why, and for how long."""
