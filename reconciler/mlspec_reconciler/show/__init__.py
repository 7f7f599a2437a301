"""How plans, progress and statuses look to people and to programs."""
