"""What closes the loop: the decision log, audits, and what labels say of the traffic."""
