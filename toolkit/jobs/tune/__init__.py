"""The search for recipe and settings by measuring on a target: study, trials, verdict, and what is written of it."""
