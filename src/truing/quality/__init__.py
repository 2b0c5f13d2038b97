"""What is wrong with this data: checks over a stream of records, what they found, and the commands that mend it."""
