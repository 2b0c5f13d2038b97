"""What people say of responses, and how far they agree. No torch."""
