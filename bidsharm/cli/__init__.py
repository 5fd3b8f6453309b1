"""The commands: parsing only; whatever is heavy is imported when it is needed."""
