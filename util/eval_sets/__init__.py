"""Readers of public test sets in their own layouts, a file per corpus or family; `catalogue` lists them all."""
