"""The methods that are compared: their table, and what each is made of."""
