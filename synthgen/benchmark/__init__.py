"""Does a network trained on synthetic slices work on real, held-out subjects?"""
