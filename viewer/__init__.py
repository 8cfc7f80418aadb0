"""Pictures of a model thinking: its answer after every ACT step, as text, picture, film or page."""
