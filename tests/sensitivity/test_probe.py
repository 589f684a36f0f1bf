import importlib.util,sys
sys.path.insert(0,"/work/main/tests/sensitivity")
import test_search as t
from onnxq.sensitivity.limits import Limits
def test_x(build, study):
    for db in (32,34,36,38,40,42,44,46,48,50):
        f,tr=t.search(study(build(t.chain())),Limits(min_sqnr=db))
        print(db,f.within,len(f.front),[(a.name,a.nodes,round(a.loss.sqnr_db,1),a.cost) for a in f.attempts])
