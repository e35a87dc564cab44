"""What every part of galray stands on: errors, schemas, storage, configuration, tracking."""
