"""Language models: config keys, data, initial weights, task, reports."""
