"""Pictures of a model thinking: its answer after every ACT step, as text, picture, animation or page."""
