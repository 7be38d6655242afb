"""Importers: configurations of other tools converted to ours, with a table of keys per tool and a report on each."""
