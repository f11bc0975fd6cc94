"""Audits of a claimed ε: canaries go into training by coins of the auditor, and how well an attack calls the coins bounds ε."""
