"""What a policy says: samplers."""
