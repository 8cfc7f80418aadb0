"""What a manager is worth: runs of HRM with and without one, and whether its goals are followed and of use."""
