"""What is in a data set, and what bidsharm writes."""
