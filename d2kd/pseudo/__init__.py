"""Labels for images that have none, made by teachers."""
