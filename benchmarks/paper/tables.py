def report(*_): pass
