"""What every framework adapter needs and no framework knows: models, settings, steps as plain data."""
