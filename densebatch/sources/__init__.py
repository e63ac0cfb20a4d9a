"""An open slide, a module or more per format: what metadata tell, and any region of its pixels."""
