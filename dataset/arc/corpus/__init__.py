"""A generated corpus of few-shot grid tasks: families of transformations, seeded, some of them held out."""
