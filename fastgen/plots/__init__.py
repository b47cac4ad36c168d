"""Pictures and sounds a person would rather look at or hear than read about."""
