"""Published benchmarks, defined here: what is asked, how an answer is judged, and which figures come of it."""
