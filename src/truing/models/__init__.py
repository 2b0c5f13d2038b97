"""Language models: where they come from, what makes their folder safe, and how they run on trees."""
