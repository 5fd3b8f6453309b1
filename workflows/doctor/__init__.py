"""Whether this machine can run bidsharm: small checks, each with a verdict, one sentence, and what to do."""
