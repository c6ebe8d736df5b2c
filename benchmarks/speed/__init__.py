"""How fast the parts are, beside peers and beside a floor."""
