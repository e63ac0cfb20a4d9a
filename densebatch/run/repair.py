def repair(*a, **k): raise NotImplementedError
