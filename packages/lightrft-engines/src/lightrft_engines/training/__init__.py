"""How models learn: strategies, and the parts they are made of."""
