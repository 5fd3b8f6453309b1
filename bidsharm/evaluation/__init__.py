"""Did the anatomy survive? Metrics, distributions and the verdict on one harmonized scan."""
