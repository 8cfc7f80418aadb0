"""Language models: arguments, sources of data and weights, task, reports."""
