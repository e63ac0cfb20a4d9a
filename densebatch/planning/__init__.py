"""What a run will do, as frozen data, before it does anything."""
