"""A constitution in place of human labels: principles, answers revised by them into demonstrations, pairs judged by them."""
