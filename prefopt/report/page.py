def page(runs):
    return "soon"
